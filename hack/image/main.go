// Command image makes a container image of ambi without a container engine: an OCI
// archive (image-spec 1.1) for several architectures, each with nothing but the program
// in it. The same programs make the same bytes: no time, host or user gets in.
//
//	image -name NAME -version VERSION -out FILE ARCH=PROGRAM...
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// The media types of OCI's image specification.
const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

func platformOf(arch string) platform {
	variants := map[string]string{"arm": "v7", "arm64": "v8"} // as hack/dist builds them
	return platform{arch, "linux", variants[arch]}
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type config struct {
	platform
	Created string         `json:"created"`
	Config  runtime        `json:"config"`
	RootFS  map[string]any `json:"rootfs"`
}

type runtime struct {
	Entrypoint []string
	Labels     map[string]string
}

// epoch is the time of all that is in the image.
var epoch = time.Unix(0, 0).UTC()

// image is an OCI layout that grows: its blobs by their digest.
type image struct {
	name, version string
	blobs         map[string][]byte
}

func main() {
	name := flag.String("name", "localhost/ambi:latest", "`name` that the image has when it is imported")
	version := flag.String("version", "", "`version` of ambi")
	out := flag.String("out", "", "`file` to write")
	flag.Parse()
	if *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*name, *version, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(name, version, out string, programs []string) error {
	i := image{name, version, map[string][]byte{}}
	all := index{2, indexType, nil}
	slices.Sort(programs)
	for _, p := range programs {
		arch, path, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("%q is not ARCH=PROGRAM", p)
		}
		program, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		one, err := i.platform(platformOf(arch), program)
		if err != nil {
			return err
		}
		all.Manifests = append(all.Manifests, one)
	}
	inner, err := i.document(indexType, all)
	if err != nil {
		return err
	}
	inner.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:]}
	text, err := json.Marshal(index{2, indexType, []descriptor{inner}})
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := i.pack(&archive, text); err != nil {
		return err
	}
	return os.WriteFile(out, archive.Bytes(), 0o644)
}

// platform adds what one architecture consists of.
func (i image) platform(p platform, program []byte) (descriptor, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := entry(w, "ambi", 0o755, program); err != nil {
		return descriptor{}, err
	}
	if err := w.Close(); err != nil {
		return descriptor{}, err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return descriptor{}, err
	}
	if _, err := z.Write(layer.Bytes()); err != nil {
		return descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return descriptor{}, err
	}
	settings, err := i.document(configType, config{
		platform: p, Created: epoch.Format(time.RFC3339),
		Config: runtime{[]string{"/ambi"}, map[string]string{"org.opencontainers.image.title": "ambi", "org.opencontainers.image.version": i.version}},
		RootFS: map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
	})
	if err != nil {
		return descriptor{}, err
	}
	d, err := i.document(manifestType, manifest{2, manifestType, settings, []descriptor{i.blob(layerType, packed.Bytes())}})
	d.Platform = &p
	return d, err
}

// document adds a blob that is JSON.
func (i image) document(mediaType string, content any) (descriptor, error) {
	text, err := json.Marshal(content)
	return i.blob(mediaType, text), err
}

func (i image) blob(mediaType string, content []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(content), Size: len(content)}
	i.blobs[d.Digest] = content
	return d
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// pack writes the layout as an archive.
func (i image) pack(to io.Writer, index []byte) error {
	w := tar.NewWriter(to)
	if err := entry(w, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := entry(w, "index.json", 0o644, index); err != nil {
		return err
	}
	var names []string
	for name := range i.blobs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := entry(w, "blobs/"+strings.Replace(name, ":", "/", 1), 0o644, i.blobs[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

func entry(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
