package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every picture is what its text says, is XML, and is shown by a page of docs.
func TestPicturesAreUpToDate(t *testing.T) {
	texts, err := filepath.Glob("*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, texts)
	var pages strings.Builder
	for _, pattern := range []string{"../*.md", "../../README.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			pages.Write(b)
		}
	}
	for _, text := range texts {
		t.Run(text, func(t *testing.T) {
			in, err := os.ReadFile(text)
			require.NoError(t, err)
			want, err := render(string(in))
			require.NoError(t, err)
			name := strings.TrimSuffix(text, ".txt") + ".svg"
			got, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, want, string(got), "run go generate ./docs/pictures")
			wellFormed(t, want)
			require.Contains(t, pages.String(), "pictures/"+name+")", "no page shows it")
		})
	}
}

func wellFormed(t *testing.T, text string) {
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	for _, text := range []string{
		"", "drawing\n", "sequence\nwho a: A\n", "sequence\nwho a: A\nwho b: B\na > c: x\n",
		"boxes 10\n", "boxes 10 10\nbox 1 2 3: x\n", "boxes 10 10\narrow 1,1: x\n", "boxes 10 10\ncircle 1 1 1: x\n",
	} {
		_, err := render(text)
		require.Error(t, err, "%q", text)
	}
}
