# ambi: "make" prints the targets. Everything a target needs, it installs itself:
# Debian packages by apt (as root), Go programs at pinned versions into .tools.

GO        ?= go
TOOLS     := $(CURDIR)/.tools/bin
VERSION   ?= $(shell hack/version)
PREFIX    ?= /usr/local
# Where the engines of this host look for plugins: /opt/cni/bin is what all of them know,
# Debian's own look in /usr/lib/cni, Fedora's in /usr/libexec/cni.
CNIDIR    ?= /opt/cni/bin
export CGO_ENABLED = 0

.PHONY: help build setup demo test test-unit test-race e2e-callers bench lint install uninstall dist dist-test clean

help:
	@echo 'make build      build the static binary bin/ambi'
	@echo 'make demo       run the main job as root and as a user, and show it (root)'
	@echo 'make test       all tests: unit, and end to end in both modes (root)'
	@echo 'make test-unit  all tests but those end to end; without root in namespaces of the user'
	@echo 'make test-race  the packages that have concurrency, under the race detector (root)'
	@echo 'make e2e-callers  Podman, containerd, go-cni, RootlessKit and others call ambi (root)'
	@echo 'make e2e-kubernetes  a cluster of one of Kubernetes has ambi as its network; half an hour the first time (root)'
	@echo 'make test-upgrade  running networks go from the last commit to this one and back, under load (root)'
	@echo 'make attack     try what containers, users, clients, delegates, configurations could; a line each (root)'
	@echo 'make attack-walls  take walls out of ambi and see that the attacks get through (root)'
	@echo 'make bench      measure against the peers; tables and pictures into docs/bench, every figure into reports (root)'
	@echo 'make conformance  ambi and others against the specification; writes docs/conformance.md (root)'
	@echo 'make fault      fail and kill verbs at every step, see that nothing is left; writes reports/faults.md (root)'
	@echo 'make soak       random verbs and kills for MINUTES, 10 by default, in each mode; draws docs/soak.svg (root)'
	@echo 'make fuzz       every fuzz test for FUZZTIME, 60s by default'
	@echo 'make lint       gofmt, go vet, golangci-lint with the import directions'
	@echo 'make audit      known vulnerabilities and licences of what is linked in'
	@echo 'make setup      install what demo and test need (root)'
	@echo 'make install    put binary, man page, completions in place: DESTDIR=, PREFIX=/usr/local,'
	@echo '                CNIDIR=/opt/cni/bin (Debian: /usr/lib/cni); make uninstall takes them away'
	@echo 'make dist       binaries for six architectures, deb, rpm, SBOM, checksums into dist;'
	@echo '                SIGNING_KEY= is an SSH key to sign the checksums with'
	@echo 'make dist-test  build dist twice and compare; install, use and remove the deb (root)'
	@echo 'make image      the container image for Kubernetes (deploy), bin/ambi-image.tar'
	@echo 'make clean      remove what make made'

build:
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ambi .

setup:
	@hack/setup
	@$(GO) build -trimpath -o $(TOOLS)/peer ./e2e/peer

demo: build setup
	@hack/demo

# The kernel makes these tests wait (namespaces and devices come and go by RCU), so more
# run at once than there are processors, and the two modules beside each other. The
# time-out is for what hangs: a slow and busy machine needs a quarter of it.
test: build setup
	@$(MAKE) --no-print-directory -j 2 test-ambi test-conformance

.PHONY: test-ambi test-conformance
test-ambi:
	AMBI_TEST_PLUGINS=$(TOOLS) $(GO) test -count=1 -p 3 -parallel 8 -timeout 2h ./...

test-conformance:
	$(GO) test -C e2e/conformance -count=1 -parallel 8 -timeout 2h ./...

# Who is not root has the rooms that make namespaces run again in a user namespace of his
# own (e2e/lab/unit, RunTests). What a test needs besides skips it, with the reason.
test-unit:
	$(GO) test -count=1 -short -timeout 1h $$($(GO) list ./... | grep -vx -e '.*/e2e' -e '.*/e2e/fault')
	$(GO) test -C e2e/conformance -count=1 -short ./...

test-race: setup
	CGO_ENABLED=1 AMBI_TEST_PLUGINS=$(TOOLS) $(GO) test -race -short -count=1 -timeout 60m ./portmap/forward/... ./rootless/...

# An upgrade from the program of the last commit to this one and back, under load.
.PHONY: test-upgrade
test-upgrade: build setup
	@hack/test-upgrade

# The attacks of e2e/attacks.txt, a line for each, and whether they notice when a wall is gone.
.PHONY: attack attack-walls
attack: build setup
	@hack/attack TestAttacks

attack-walls: build setup
	@hack/attack TestMissingWalls

# What an engine needs and cannot be installed is skipped, with the reason.
e2e-callers: build setup image
	@hack/setup-callers
	AMBI_TEST_CALLERS=1 $(GO) test -count=1 -v -parallel 2 -timeout 60m -run '^TestCallers' ./e2e

# Not in .ci/run: building Kubernetes takes longer than all of that. KUBERNETES_FLAGS are
# of go test.
.PHONY: e2e-kubernetes
e2e-kubernetes: build setup image
	@hack/setup-kubernetes
	@IMAGE=localhost/ambi:newer VERSION=v99.0.0 OUT=bin/ambi-image-newer.tar hack/make-image $$($(GO) env GOHOSTARCH)
	AMBI_TEST_KUBERNETES=1 $(GO) test -count=1 -v -timeout 0 -run '^TestKubernetes$$' $(KUBERNETES_FLAGS) ./e2e

# About a quarter of an hour for the forwarders and some minutes for the rest;
# BENCH_FLAGS=-quick is one short round of everything, BENCH_BEFORE another binary of ambi to
# measure beside this one.
bench: build setup
	@hack/setup-bench
	@$(GO) build -trimpath -o $(TOOLS)/bench ./e2e/bench
	@$(GO) build -trimpath -tags ambi_nocli -ldflags '-s -w -X main.version=$(VERSION)' -o $(TOOLS)/ambi-nocli .
	@$(TOOLS)/bench run $(if $(BENCH_BEFORE),-before $(BENCH_BEFORE)) $(BENCH_FLAGS)
	@$(TOOLS)/bench run-out $(BENCH_FLAGS)
	@$(TOOLS)/bench run-between $(BENCH_FLAGS)
	@$(TOOLS)/bench run-names $(BENCH_FLAGS)
	@$(TOOLS)/bench run-cost $(if $(BENCH_BEFORE),-before $(BENCH_BEFORE)) $(BENCH_FLAGS)

# A quarter of an hour: plugins that leave something are given a minute to take it away.
.PHONY: conformance
conformance: build setup
	@$(GO) build -C e2e/conformance -trimpath -o $(TOOLS)/conformance .
	@hack/conformance

# Some minutes for each mode; FAULT_FLAGS='-mode root -faults 1000 -seed 7' for others.
.PHONY: fault
fault: build setup
	@$(GO) build -trimpath -o $(TOOLS)/fault ./e2e/fault
	@mkdir -p reports
	@$(TOOLS)/fault -report reports/faults.md $(FAULT_FLAGS)

# SOAK_FLAGS='-mode root -seed 7' for another.
MINUTES ?= 10
.PHONY: soak
soak: build setup
	@$(GO) build -trimpath -o $(TOOLS)/soak ./e2e/soak
	@$(TOOLS)/soak -minutes $(MINUTES) -picture docs/soak.svg $(SOAK_FLAGS)

.PHONY: fuzz
fuzz:
	@hack/fuzz

lint:
	@hack/lint

.PHONY: audit
audit: build
	@hack/audit

install: bin/ambi
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNIDIR="$(CNIDIR)" hack/install

uninstall:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNIDIR="$(CNIDIR)" hack/install remove

# Only when there is none: "sudo make install" installs what the user has built.
bin/ambi:
	@$(MAKE) build

# IMAGE_ARCHES='amd64 arm64 arm riscv64 ppc64le s390x' for all of them.
IMAGE_ARCHES ?= amd64 arm64
.PHONY: image
image:
	@VERSION="$(VERSION)" hack/make-image $(IMAGE_ARCHES)

dist:
	@VERSION="$(VERSION)" hack/dist

# DIST_ARCHS are the architectures, all without it.
dist-test: build setup
	@hack/dist-test $(DIST_ARCHS)

clean:
	rm -rf bin dist .tools
