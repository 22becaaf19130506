// Command device-plugin advertises a number of devices to the kubelet, as the
// device plugin of a GPU's vendor does, on nodes that have none: pods that ask
// for them are scheduled, counted and refused as on a real GPU node. A
// container that gets some sees their names in NVIDIA_VISIBLE_DEVICES.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	resource string
	devices  []*api.Device
}

func main() {
	resource := flag.String("resource", "nvidia.com/gpu", "name of the resource")
	count := flag.Int("count", 1, "how many devices there are")
	flag.Parse()
	served := &plugin{resource: *resource}
	for number := range *count {
		id := fmt.Sprintf("gpu-%d", number)
		served.devices = append(served.devices, &api.Device{ID: id, Health: api.Healthy})
	}
	for {
		if err := served.run(); err != nil {
			log.Print(err)
		}
		time.Sleep(time.Second)
	}
}

// run serves until the kubelet, which empties its folder when it starts, has
// removed the socket.
func (p *plugin) run() error {
	socket := path.Join(api.DevicePluginPath, strings.ReplaceAll(p.resource, "/", "_")+".sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	if err := p.register(path.Base(socket)); err != nil {
		return err
	}
	log.Printf("%d %s registered", len(p.devices), p.resource)
	for {
		time.Sleep(time.Second)
		if _, err := os.Stat(socket); os.IsNotExist(err) {
			return fmt.Errorf("the kubelet has started again")
		}
	}
}

func (p *plugin) register(endpoint string) error {
	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	limit, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(kubelet).Register(limit, &api.RegisterRequest{
		Version:      api.Version,
		Endpoint:     endpoint,
		ResourceName: p.resource,
		Options:      &api.DevicePluginOptions{},
	})
	return err
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch tells the devices once: they neither break nor come and go.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		names := strings.Join(container.DevicesIds, ",")
		answer.ContainerResponses = append(answer.ContainerResponses,
			&api.ContainerAllocateResponse{Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": names}})
	}
	return answer, nil
}
