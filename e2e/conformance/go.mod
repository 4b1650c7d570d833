module github.com/ambi-cni/ambi/e2e/conformance

go 1.26.0

// Of the checkout it uses the comparison of machines, e2e/snapshot, and nothing else.
replace github.com/ambi-cni/ambi => ../..

require (
	github.com/ambi-cni/ambi v0.0.0-00010101000000-000000000000
	github.com/containernetworking/cni v1.3.0
	github.com/stretchr/testify v1.12.1
	github.com/vishvananda/netlink v1.3.1
	github.com/vishvananda/netns v0.0.5
	golang.org/x/sys v0.49.0
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect
