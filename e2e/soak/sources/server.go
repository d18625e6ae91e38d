// Counts for each client, with the parts of Go's runtime that hold state in the kernel.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	mutex  sync.Mutex
	counts = map[string]int{}
	ticks  atomic.Int64
)

func add(client string) string {
	mutex.Lock()
	defer mutex.Unlock()
	counts[client]++
	return fmt.Sprintf("%s %d", client, counts[client])
}

// A ring of goroutines that each add one.
func ring() bool {
	const size = 100
	first := make(chan int)
	in := first
	for range size {
		out := make(chan int, 1)
		go func(in, out chan int) { out <- 1 + <-in }(in, out)
		in = out
	}
	first <- 0
	return <-in == size
}

func check() string {
	before := ticks.Load()
	if !ring() {
		return "the ring's answer"
	}
	out, err := exec.Command("/bin/sh", "-c", "sleep 0.05; echo child").Output()
	if err != nil || string(out) != "child\n" {
		return fmt.Sprintf("the child: %q %v", out, err)
	}
	runtime.GC()
	for i := 0; i < 200 && ticks.Load() == before; i++ {
		time.Sleep(50 * time.Millisecond)
	}
	if ticks.Load() == before {
		return "a ticker that stands still"
	}
	return "ok"
}

func main() {
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	http.HandleFunc("/check", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, check()) })
	http.HandleFunc("/add/", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, add(strings.TrimPrefix(r.URL.Path, "/add/")))
	})
	log.Fatal(http.ListenAndServe("0.0.0.0:8080", nil))
}
