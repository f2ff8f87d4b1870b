//go:build tools

// Package tools pins the crossplane CLI that the tests build.
package tools

import _ "github.com/crossplane/cli/v2/cmd/crossplane"
