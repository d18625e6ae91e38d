// load calls ListPodSandbox of a CRI socket at a fixed rate and prints what the calls took, as JSON.
//
//	load ENDPOINT CALLS_A_SECOND SECONDS
//
// Calls are sent when they are due, whether or not earlier ones were answered; what a call takes counts
// from when it was due. A rate of 0 sends one call after the other.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type tally struct {
	sync.Mutex
	took   []time.Duration
	errors int
}

func (t *tally) add(due time.Time, err error) {
	took := time.Since(due)
	t.Lock()
	defer t.Unlock()
	if err != nil {
		t.errors++
		return
	}
	t.took = append(t.took, took)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) != 3 {
		return fmt.Errorf("usage: load ENDPOINT CALLS_A_SECOND SECONDS")
	}
	rate, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(words[2], 64)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(words[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	call := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}
	if err := call(); err != nil { // connected from here on
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(measure(call, rate, time.Duration(seconds*float64(time.Second))))
}

func measure(call func() error, rate int, length time.Duration) map[string]any {
	var results tally
	var calls sync.WaitGroup
	start := time.Now()
	for due := start; due.Sub(start) < length; {
		if rate == 0 {
			due = time.Now()
			results.add(due, call())
			continue
		}
		time.Sleep(time.Until(due))
		calls.Add(1)
		go func(due time.Time) {
			defer calls.Done()
			results.add(due, call())
		}(due)
		due = due.Add(time.Second / time.Duration(rate))
	}
	calls.Wait()
	took := time.Since(start).Seconds()
	slices.Sort(results.took)
	at := func(part float64) float64 {
		if len(results.took) == 0 {
			return 0
		}
		return float64(results.took[int(part*float64(len(results.took)-1))].Microseconds())
	}
	return map[string]any{"p50_us": at(0.5), "p99_us": at(0.99), "errors": results.errors,
		"answered_a_second": float64(len(results.took)) / took}
}
