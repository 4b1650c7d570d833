//go:build !amd64

package main

import "errors"

func tryWithin([]string) error { return errors.New("only on amd64") }

func caught([]string) error { return errors.New("only on amd64") }
