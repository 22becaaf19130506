// Package ecs stands in for the provider that finds services on Amazon ECS:
// no cluster here runs there, and its SDK is the largest package of Traefik.
package ecs

import (
	"errors"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/safe"
)

// Provider is what the static configuration holds for this provider.
type Provider struct{}

// SetDefaults has nothing to set.
func (*Provider) SetDefaults() {}

// Init refuses to be used.
func (*Provider) Init() error {
	return errors.New("this build of Traefik has no ECS provider")
}

// Provide is not reached, as Init refuses.
func (*Provider) Provide(chan<- dynamic.Message, *safe.Pool) error {
	return nil
}
