// Command sbom writes what binaries of ambi are made of: a CycloneDX 1.6 bill of
// materials, and the licences of the modules that are linked in, from what the Go
// toolchain wrote into the binaries themselves and the texts in the module cache.
//
// It has no time and no serial number in it: the same binaries give the same bytes.
// cyclonedx-gomod cannot do that (its bill has the time of day, which cannot be set) and
// makes one bill per binary.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("sbom: ")
	version := flag.String("version", "", "version of the binaries")
	sbom := flag.String("sbom", "", "file to write the bill of materials to")
	licences := flag.String("licences", "", "file to write the licence texts to")
	list := flag.Bool("list", false, "only print modules and licences, and fail where one is not among the allowed")
	flag.Parse()
	about, err := withLicences(flag.Args())
	if err == nil && *list {
		err = about.list(os.Stdout)
	} else if err == nil {
		err = about.write(*version, *sbom, *licences)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func withLicences(binaries []string) (*contents, error) {
	if len(binaries) == 0 {
		return nil, errors.New("no binary given")
	}
	about, err := inspect(binaries)
	if err != nil {
		return nil, err
	}
	for _, m := range about.modules {
		if m.licence, m.text, err = licenceOf(m); err != nil {
			return nil, err
		}
	}
	return about, nil
}

// allowed are the licences under which a module can be part of a binary that is passed on
// under Apache-2.0 with no more than their texts beside it.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

func (about *contents) list(w io.Writer) error {
	var errs []error
	for _, m := range about.modules {
		fmt.Fprintf(w, "%s %s %s\n", m.path, m.version, m.licence)
		if !slices.Contains(allowed, m.licence) {
			errs = append(errs, fmt.Errorf("module %s is under %s, which is not among the allowed (%s)", m.path, m.licence, strings.Join(allowed, ", ")))
		}
	}
	return errors.Join(errs...)
}

func (about *contents) write(version, sbom, licences string) error {
	b, err := json.MarshalIndent(about.bill(version), "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(sbom, append(b, '\n'), 0o644),
		os.WriteFile(licences, []byte(about.texts()), 0o644),
	)
}

// contents is what is in the binaries.
type contents struct {
	main      string // module path
	goVersion string
	files     []component
	modules   []*module // sorted by path
}

type module struct {
	path, version, sum string
	licence            string // SPDX identifier
	text               string
}

// inspect reads the binaries. They have to agree on the modules' versions.
func inspect(binaries []string) (*contents, error) {
	about := &contents{}
	modules := map[string]*module{}
	for _, name := range binaries {
		info, err := buildinfo.ReadFile(name)
		if err != nil {
			return nil, err
		}
		about.main, about.goVersion = info.Main.Path, strings.TrimPrefix(info.GoVersion, "go")
		for _, d := range info.Deps {
			if d.Replace != nil {
				return nil, fmt.Errorf("%s: module %s is replaced, which this program does not describe", name, d.Path)
			}
			if have := modules[d.Path]; have != nil && have.version != d.Version {
				return nil, fmt.Errorf("%s: %s %s, and %s in another binary", name, d.Path, d.Version, have.version)
			}
			modules[d.Path] = &module{path: d.Path, version: d.Version, sum: d.Sum}
		}
		if err := static(name); err != nil {
			return nil, err
		}
		file, err := describe(name, info)
		if err != nil {
			return nil, err
		}
		about.files = append(about.files, file)
	}
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		about.modules = append(about.modules, modules[path])
	}
	return about, nil
}

// static refuses a binary that would load libraries, which the bill does not list.
func static(name string) error {
	f, err := elf.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("%s is not a static binary", name)
		}
	}
	return nil
}

// describe is one binary: its digest, and how it was built.
func describe(name string, info *debug.BuildInfo) (component, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return component{}, err
	}
	sum := sha256.Sum256(b)
	c := component{Type: "file", Name: filepath.Base(name), Ref: "file:" + filepath.Base(name),
		Hashes: []digest{{"SHA-256", hex.EncodeToString(sum[:])}}}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "CGO_ENABLED":
			c.Properties = append(c.Properties, property{"build:" + s.Key, s.Value})
		}
	}
	return c, nil
}

// licenceOf finds the licence of a module in the module cache.
func licenceOf(m *module) (id, text string, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", m.path+"@"+m.version).Output()
	if err != nil {
		return "", "", fmt.Errorf("go list %s@%s: %w", m.path, m.version, err)
	}
	dir := strings.TrimSpace(string(out))
	var texts []string
	for _, name := range []string{"LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING", "NOTICE", "PATENTS"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		texts = append(texts, strings.TrimSpace(string(b)))
	}
	if len(texts) == 0 {
		return "", "", fmt.Errorf("module %s: no licence in %s", m.path, dir)
	}
	if id = identify(texts[0]); id == "" {
		return "", "", fmt.Errorf("module %s: a licence that this program does not know; add it to identify", m.path)
	}
	return id, strings.Join(texts, "\n\n"), nil
}

// identify tells the licences apart that modules of Go come with.
func identify(text string) string {
	words := strings.Join(strings.Fields(text), " ")
	has := func(s string) bool { return strings.Contains(words, s) }
	switch {
	case has("Apache License") && has("Version 2.0"):
		return "Apache-2.0"
	case has("Mozilla Public License") && has("2.0"):
		return "MPL-2.0"
	case has("Permission is hereby granted, free of charge"):
		return "MIT"
	case has("Permission to use, copy, modify, and/or distribute this software"):
		return "ISC"
	case has("Redistribution and use in source and binary forms") && has("Neither the name"):
		return "BSD-3-Clause"
	case has("Redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	}
	return ""
}

// texts is what has to come along with a binary.
func (c *contents) texts() string {
	rule := strings.Repeat("=", 78)
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\nThe program has the Go standard library in it, whose licence is that of golang.org/x/sys,\nand these modules:\n\n", rule)
	sharing := map[string][]string{} // by text
	var order []string
	for _, m := range c.modules {
		fmt.Fprintf(&b, "  %s %s (%s)\n", m.path, m.version, m.licence)
		if sharing[m.text] == nil {
			order = append(order, m.text)
		}
		sharing[m.text] = append(sharing[m.text], m.path)
	}
	for _, text := range order {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", rule, strings.Join(sharing[text], "\n"), text)
	}
	return b.String()
}

// The parts of CycloneDX that are used here.
type (
	bill struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Ref        string     `json:"bom-ref"`
		Type       string     `json:"type"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		Scope      string     `json:"scope,omitempty"`
		Hashes     []digest   `json:"hashes,omitempty"`
		Licences   []licence  `json:"licenses,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	digest struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	licence struct {
		Licence struct {
			ID string `json:"id"`
		} `json:"license"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

func licensed(id string) []licence {
	var l licence
	l.Licence.ID = id
	return []licence{l}
}

func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// bill is the bill of materials.
func (c *contents) bill(version string) bill {
	self := component{Type: "application", Name: "ambi", Version: version, Ref: purl(c.main, version), PURL: purl(c.main, version), Licences: licensed("Apache-2.0")}
	out := bill{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{Component: self}}
	std := purl("std", c.goVersion)
	parts := []component{{Ref: std, Type: "library", Name: "std", Version: c.goVersion, Scope: "required", PURL: std, Licences: licensed("BSD-3-Clause")}}
	for _, m := range c.modules {
		ref := purl(m.path, m.version)
		part := component{Ref: ref, Type: "library", Name: m.path, Version: m.version, Scope: "required", PURL: ref, Licences: licensed(m.licence)}
		// go.sum's h1 is the SHA-256 of the list of the module's files.
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:")); err == nil && len(sum) == sha256.Size {
			part.Hashes = []digest{{"SHA-256", hex.EncodeToString(sum)}}
		}
		parts = append(parts, part)
	}
	all := dependency{Ref: self.Ref}
	for _, p := range parts {
		all.DependsOn = append(all.DependsOn, p.Ref)
	}
	out.Components = append(parts, c.files...)
	out.Dependencies = []dependency{all}
	return out
}
