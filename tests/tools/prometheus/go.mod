module example.org/function-kv-offload/tests/tools/prometheus

go 1.26.0

// The tests use only the CRDs in its example/prometheus-operator-crd; nothing is built.
require github.com/prometheus-operator/prometheus-operator v0.85.0
