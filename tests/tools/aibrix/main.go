// Command aibrix runs AIBrix's own KVCache controller, and nothing else of AIBrix.
//
// AIBrix's own manager has much more in it: other controllers, webhooks and their certificates.
// $KUBECONFIG or --kubeconfig says which cluster; the CRD of KVCaches has to be there first.
package main

import (
	"flag"
	"fmt"
	"os"

	orchestration "github.com/vllm-project/aibrix/api/orchestration/v1alpha1"
	"github.com/vllm-project/aibrix/pkg/config"
	"github.com/vllm-project/aibrix/pkg/controller/kvcache"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	metrics "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "aibrix:", err)
		os.Exit(1)
	}
}

func run() error {
	// klog, as AIBrix itself does.
	ctrl.SetLogger(klog.Background())
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, orchestration.AddToScheme} {
		if err := add(known); err != nil {
			return err
		}
	}
	cluster, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	manager, err := ctrl.NewManager(cluster, ctrl.Options{
		Scheme: known,
		// Off: several of these may run on one machine.
		Metrics: metrics.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	if err := kvcache.Add(manager, config.RuntimeConfig{}); err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}
