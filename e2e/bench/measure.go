package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// loadCommand is a load from this client to the instance.
func (c client) loadCommand(ctx context.Context, i *instance, kind string, args ...string) *exec.Cmd {
	argv := append(append([]string{}, c.runner...), stage+"/bench", "load", kind, "-to", fmt.Sprintf("%s:%d", c.address, i.port))
	argv = append(argv, args...)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// measure runs one load and reads its figures.
func (c client) measure(i *instance, w window, kind string, args ...string) (figures, error) {
	ctx, cancel := context.WithTimeout(context.Background(), w.warm+w.length+5*patience)
	defer cancel()
	args = append([]string{"-time", w.length.String(), "-warm", w.warm.String()}, args...)
	cmd := c.loadCommand(ctx, i, kind, args...)
	var complaint tail
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, explain(ctx, err, &complaint)
	}
	var found figures
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("reading the figures: %w", err)
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	found["load_s"] = used.Seconds()
	return found, nil
}

func explain(ctx context.Context, err error, complaint *tail) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the load did not come to an end")
	}
	if text := complaint.last(); text != "" {
		return fmt.Errorf("%s", strings.TrimPrefix(text, "bench: ")) // the last one of several, maybe
	}
	return err
}

// holdLimit bounds the making of connections that are to be held.
const holdLimit = 20 * time.Second

// held runs a load that holds connections or flows, and then while.
func (c client) held(i *instance, kind string, number int, while func()) (figures, error) {
	ctx, cancel := context.WithTimeout(context.Background(), holdLimit)
	defer cancel()
	cmd := c.loadCommand(ctx, i, kind, "-number", fmt.Sprint(number))
	var complaint tail
	cmd.Stderr = &complaint
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	var found figures
	if err == nil {
		err = json.Unmarshal(line, &found)
	}
	if err == nil {
		time.Sleep(300 * time.Millisecond) // until it is idle
		while()
	}
	stdin.Close()
	cancelled := ctx.Err() != nil
	waitErr := cmd.Wait()
	switch {
	case cancelled:
		return nil, fmt.Errorf("%d were not made in %s", number, holdLimit)
	case err != nil && waitErr != nil:
		return nil, explain(ctx, waitErr, &complaint)
	case err == nil && found["failed"] > 0:
		err = explain(ctx, nil, &complaint)
	}
	return found, err
}

// seenAs asks what the server takes the client for.
func (c client) seenAs(i *instance) (tcp, udp string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := c.loadCommand(ctx, i, "address").Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != 2 {
		return "?", "?"
	}
	return lines[0], lines[1]
}
