//go:build tools

// Package tools pins the Crossplane core binary that the tests build, and a registry to install packages from.
package tools

import (
	_ "github.com/crossplane/crossplane/v2/cmd/crossplane"
	_ "github.com/google/go-containerregistry/cmd/registry"
)
