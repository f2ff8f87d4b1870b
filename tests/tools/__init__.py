"""What the tests run beside Python: Crossplane's own programs, built from pinned Go modules, and thin calls to them."""
