// cri calls one method of a CRI socket: JSON in, JSON out, with the client stubs that the kubelet uses.
//
//	cri [--timeout 2m] ENDPOINT METHOD [REQUEST]
//
// REQUEST is the JSON form of the method's request message ("{}" when left out, "-" reads it from
// standard input). A stream prints one line of JSON a message until it ends or the time is up. An error
// prints "CODE: message" with the gRPC code and exits with 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const maxMessageBytes = 16 << 20 // the kubelet's limit

func main() {
	timeout := flag.Duration("timeout", 2*time.Minute, "deadline of the call")
	flag.Parse()
	if flag.NArg() < 2 || flag.NArg() > 3 {
		fmt.Fprintln(os.Stderr, "usage: cri [--timeout 2m] ENDPOINT METHOD [REQUEST]")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if err := call(ctx, flag.Arg(0), flag.Arg(1), flag.Arg(2)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", status.Code(err), status.Convert(err).Message())
		os.Exit(1)
	}
}

func call(ctx context.Context, endpoint, name, request string) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return err
	}
	defer conn.Close()
	method := reflect.ValueOf(runtimeapi.NewRuntimeServiceClient(conn)).MethodByName(name)
	if !method.IsValid() {
		method = reflect.ValueOf(runtimeapi.NewImageServiceClient(conn)).MethodByName(name)
	}
	if !method.IsValid() {
		return status.Errorf(codes.InvalidArgument, "no CRI method %q", name)
	}
	in := reflect.New(method.Type().In(1).Elem())
	if err := parse(request, in.Interface().(proto.Message)); err != nil {
		return status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), in})
	if err, failed := out[1].Interface().(error); failed {
		return err
	}
	if message, unary := out[0].Interface().(proto.Message); unary {
		return show(message)
	}
	return showStream(ctx, out[0].MethodByName("Recv"))
}

func parse(text string, message proto.Message) error {
	if text == "-" {
		input, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		text = string(input)
	}
	if text == "" {
		return nil
	}
	return protojson.Unmarshal([]byte(text), message)
}

func show(message proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err == nil {
		fmt.Println(string(text))
	}
	return err
}

// showStream ends without an error when the time is up: a stream of events has no end of its own.
func showStream(ctx context.Context, receive reflect.Value) error {
	for {
		out := receive.Call(nil)
		if err, failed := out[1].Interface().(error); failed {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := show(out[0].Interface().(proto.Message)); err != nil {
			return err
		}
	}
}
