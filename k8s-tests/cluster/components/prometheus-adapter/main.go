// Command prometheus-adapter serves the custom metrics API out of Prometheus
// with the rules, queries and registry of the project of that name. Its own
// command was last released for Kubernetes 1.30 and does not compile with the
// libraries of the cluster here; this one adds a restart when the rules change.
package main

import (
	"bytes"
	"context"
	"flag"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/common/model"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/prometheus-adapter/pkg/client"
	"sigs.k8s.io/prometheus-adapter/pkg/config"
	provider "sigs.k8s.io/prometheus-adapter/pkg/custom-provider"
	"sigs.k8s.io/prometheus-adapter/pkg/naming"
)

type adapter struct {
	cmd.AdapterBase
	prometheus string
	rules      string
	interval   time.Duration
	age        time.Duration
}

func main() {
	if err := run(); err != nil {
		klog.ErrorS(err, "prometheus-adapter ends")
		os.Exit(1)
	}
}

func run() error {
	made := adapter{AdapterBase: cmd.AdapterBase{Name: "prometheus-adapter"}}
	flags := made.Flags()
	flags.StringVar(&made.prometheus, "prometheus-url", "http://localhost:9090", "where Prometheus answers")
	flags.StringVar(&made.rules, "config", "/etc/adapter/config.yaml", "file with the rules")
	flags.DurationVar(&made.interval, "metrics-relist-interval", 10*time.Second, "time between looks for new series")
	flags.DurationVar(&made.age, "metrics-max-age", time.Minute, "age up to which a series counts as present")
	logging := flag.NewFlagSet("logging", flag.ContinueOnError)
	klog.InitFlags(logging)
	flags.AddGoFlagSet(logging)
	flags.SetNormalizeFunc(pflag.CommandLine.GetNormalizeFunc())
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := made.install(ctx); err != nil {
		return err
	}
	go endOnChange(made.rules, stop)
	return made.Run(ctx)
}

// install reads the rules and puts the metrics they name into the API server.
func (a *adapter) install(ctx context.Context) error {
	address, err := url.Parse(a.prometheus)
	if err != nil {
		return err
	}
	rules, err := config.FromFile(a.rules)
	if err != nil {
		return err
	}
	mapper, err := a.RESTMapper()
	if err != nil {
		return err
	}
	objects, err := a.DynamicClient()
	if err != nil {
		return err
	}
	namers, err := naming.NamersFromConfig(rules.Rules, mapper)
	if err != nil {
		return err
	}
	http := &http.Client{Timeout: 20 * time.Second}
	prometheus := patient{client.NewClient(http, address, nil, "GET")}
	metrics, lister := provider.NewPrometheusProvider(mapper, objects, prometheus, namers, a.interval, a.age)
	lister.RunUntil(ctx.Done())
	a.WithCustomMetrics(metrics)
	return nil
}

// patient asks without the deadline of the request that it asks for: the
// client turns one into a negative time-out, which Prometheus refuses. The
// time-out of its HTTP client holds for all.
type patient struct {
	client.Client
}

func (p patient) Query(ctx context.Context, at model.Time, query client.Selector) (client.QueryResult, error) {
	return p.Client.Query(context.WithoutCancel(ctx), at, query)
}

// endOnChange ends the program when the rules are no longer those that it has
// read; the kubelet starts it again.
func endOnChange(file string, stop func()) {
	before, _ := os.ReadFile(file)
	for range time.Tick(2 * time.Second) {
		now, err := os.ReadFile(file)
		if err == nil && !bytes.Equal(before, now) {
			klog.InfoS("the rules have changed, starting again with the new ones")
			stop()
			return
		}
	}
}
