// A client of LDLM on grpc-go, which does what the examples of LDLM's Go client do. Only generated
// code and the gRPC library: what a server sees is what any Go client sends it.
//
//	ldlm-go -address HOST:PORT [flags] calls         every call and its refusals, each a line "ok ..."
//	ldlm-go -address HOST:PORT [flags] try NAME      one TryLock: "locked true", or "status CODE TEXT"
//	ldlm-go -address HOST:PORT [flags] keep NAME     locks, says "held"; after a line on standard input
//	                                                 locks again, over lost connections: "held again"
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"ldlm/pb"
)

const patience = 60 * time.Second

var (
	address    = flag.String("address", "", "HOST:PORT of the server")
	password   = flag.String("password", "", "sent with every call")
	caFile     = flag.String("ca", "", "TLS, with this authority")
	certFile   = flag.String("cert", "", "the client's certificate")
	keyFile    = flag.String("key", "", "its key")
	skipVerify = flag.Bool("skip-verify", false, "TLS with whatever certificate the server has")
)

// Messages as the generated code of today has them, which the gRPC of some distributions does not
// know yet.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(body []byte, message interface{}) error {
	return proto.Unmarshal(body, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

type client struct {
	connection *grpc.ClientConn
	pb.LDLMClient
}

func fail(format string, words ...interface{}) {
	fmt.Printf("failed: "+format+"\n", words...)
	os.Exit(1)
}

func check(what string, good bool, seen ...interface{}) {
	if !good {
		fail("%s: %v", what, seen)
	}
	fmt.Println("ok", what)
}

func security() grpc.DialOption {
	if *caFile == "" && !*skipVerify {
		return grpc.WithInsecure()
	}
	config := &tls.Config{InsecureSkipVerify: *skipVerify}
	if *caFile != "" {
		text, err := os.ReadFile(*caFile)
		if err != nil {
			fail("%v", err)
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(text)
	}
	if *certFile != "" {
		pair, err := tls.LoadX509KeyPair(*certFile, *keyFile)
		if err != nil {
			fail("%v", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

func dial() client {
	connection, err := grpc.Dial(*address, security())
	if err != nil {
		fail("%v", err)
	}
	return client{connection, pb.NewLDLMClient(connection)}
}

func within(limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	if *password != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", *password)
	}
	return ctx, cancel
}

func seconds(number int32) *int32 { return &number }

func (c client) lock(request *pb.LockRequest) *pb.LockResponse {
	ctx, cancel := within(patience)
	defer cancel()
	answer, err := c.Lock(ctx, request)
	if err != nil {
		fail("Lock: %v", err)
	}
	return answer
}

func (c client) tryLock(request *pb.TryLockRequest) *pb.LockResponse {
	ctx, cancel := within(patience)
	defer cancel()
	answer, err := c.TryLock(ctx, request)
	if err != nil {
		fail("TryLock: %v", err)
	}
	return answer
}

func (c client) unlock(name, key string) *pb.UnlockResponse {
	ctx, cancel := within(patience)
	defer cancel()
	answer, err := c.Unlock(ctx, &pb.UnlockRequest{Name: name, Key: key})
	if err != nil {
		fail("Unlock: %v", err)
	}
	return answer
}

func (c client) renew(name, key string, timeout int32) *pb.LockResponse {
	ctx, cancel := within(patience)
	defer cancel()
	answer, err := c.Renew(ctx, &pb.RenewRequest{Name: name, Key: key, LockTimeoutSeconds: timeout})
	if err != nil {
		fail("Renew: %v", err)
	}
	return answer
}

func lockAndUnlock(one, two client) {
	held := one.lock(&pb.LockRequest{Name: "go"})
	check("lock", held.Locked && held.Name == "go" && len(held.Key) == 36 && held.Error == nil, held)
	refused := two.tryLock(&pb.TryLockRequest{Name: "go"})
	check("try lock", !refused.Locked && refused.Error == nil, refused)
	wrong := two.unlock("go", "wrong")
	check("wrong key", !wrong.Unlocked && wrong.Error.Code == pb.ErrorCode_InvalidLockKey &&
		wrong.Error.Message == "invalid lock key", wrong)
	over := two.lock(&pb.LockRequest{Name: "go", WaitTimeoutSeconds: seconds(1)})
	check("wait timeout", !over.Locked && over.Error.Code == pb.ErrorCode_LockWaitTimeout, over)
	check("unlock", one.unlock("go", held.Key).Unlocked)
	unknown := one.unlock("go never", "k")
	check("unknown", unknown.Error.Code == pb.ErrorCode_LockDoesNotExist, unknown)
}

func sizes(one, two client) {
	three := seconds(3)
	for i := 0; i < 3; i++ {
		held := one.lock(&pb.LockRequest{Name: "go sized", Size: three})
		check("size", held.Locked, held)
	}
	full := two.tryLock(&pb.TryLockRequest{Name: "go sized", Size: three})
	check("full", !full.Locked && full.Error == nil, full)
	other := two.tryLock(&pb.TryLockRequest{Name: "go sized"})
	check("mismatch", other.Error.Code == pb.ErrorCode_LockSizeMismatch, other)
	none := two.tryLock(&pb.TryLockRequest{Name: "go sized", Size: seconds(0)})
	check("no size", none.Error.Code == pb.ErrorCode_InvalidLockSize, none)
}

func renewals(one, two client) {
	held := one.lock(&pb.LockRequest{Name: "go renewed", LockTimeoutSeconds: seconds(6)})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
				if !one.renew("go renewed", held.Key, 6).Locked {
					fail("renew")
				}
			}
		}
	}()
	kept := two.lock(&pb.LockRequest{Name: "go renewed", WaitTimeoutSeconds: seconds(7)})
	check("renewed", !kept.Locked && kept.Error.Code == pb.ErrorCode_LockWaitTimeout, kept)
	close(stop)
	<-stopped
	next := two.lock(&pb.LockRequest{Name: "go renewed"})
	check("not renewed", next.Locked, next)
	late := one.renew("go renewed", held.Key, 3)
	check("late", late.Error.Code == pb.ErrorCode_LockDoesNotExistOrInvalidKey, late)
}

func ends(one, two client) {
	leaving := dial()
	check("lock to leave", leaving.lock(&pb.LockRequest{Name: "go left"}).Locked)
	leaving.connection.Close()
	check("left", two.lock(&pb.LockRequest{Name: "go left"}).Locked)

	held := one.lock(&pb.LockRequest{Name: "go cancelled"})
	for _, limit := range []time.Duration{0, 500 * time.Millisecond} {
		ctx, cancel := within(patience)
		wanted := codes.Canceled
		if limit > 0 {
			cancel()
			ctx, cancel = within(limit)
			wanted = codes.DeadlineExceeded
		} else {
			time.AfterFunc(500*time.Millisecond, cancel)
		}
		_, err := two.Lock(ctx, &pb.LockRequest{Name: "go cancelled"})
		cancel()
		check("given up", status.Code(err) == wanted, err)
	}
	check("unlock", one.unlock("go cancelled", held.Key).Unlocked)
	check("nobody has it", one.lock(&pb.LockRequest{Name: "go cancelled"}).Locked)
}

func crowd(one, two client) {
	held := one.lock(&pb.LockRequest{Name: "go crowd"})
	var waiting sync.WaitGroup
	for i := 0; i < 300; i++ {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			mine := two.lock(&pb.LockRequest{Name: "go crowd"})
			if !mine.Locked || !two.unlock("go crowd", mine.Key).Unlocked {
				fail("crowd: %v", mine)
			}
		}()
	}
	for i := 0; i < 100; i++ {
		name := fmt.Sprintf("go beside %d", i)
		mine := two.lock(&pb.LockRequest{Name: name})
		if !mine.Locked || !two.unlock(name, mine.Key).Unlocked {
			fail("beside: %v", mine)
		}
	}
	fmt.Println("ok beside the crowd")
	check("unlock", one.unlock("go crowd", held.Key).Unlocked)
	waiting.Wait()
	fmt.Println("ok crowd")
}

func oddities(one client) {
	name := strings.Repeat("ä", 500_000)
	held := one.lock(&pb.LockRequest{Name: name})
	check("long name", held.Locked && held.Name == name)
	check("long name unlocked", one.unlock(name, held.Key).Unlocked)
	ctx, cancel := within(patience)
	defer cancel()
	err := one.connection.Invoke(ctx, "/ldlm.LDLM/Foo", &pb.LockRequest{}, &pb.LockResponse{})
	check("unknown method", status.Code(err) == codes.Unimplemented &&
		status.Convert(err).Message() == "unknown method Foo for service ldlm.LDLM", err)
	_, err = one.Lock(ctx, &pb.LockRequest{Name: strings.Repeat("x", 5_000_000)})
	check("too large", status.Code(err) == codes.ResourceExhausted, err)
}

func try(name string) {
	ctx, cancel := within(patience)
	defer cancel()
	answer, err := dial().TryLock(ctx, &pb.TryLockRequest{Name: name})
	if err != nil {
		fmt.Println("status", status.Code(err), status.Convert(err).Message())
		return
	}
	fmt.Println("locked", answer.Locked)
}

func keep(name string) {
	one := dial()
	check("lock", one.lock(&pb.LockRequest{Name: name}).Locked)
	fmt.Println("held")
	bufio.NewReader(os.Stdin).ReadString('\n')
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		ctx, cancel := within(patience)
		answer, err := one.TryLock(ctx, &pb.TryLockRequest{Name: name})
		cancel()
		if err == nil && answer.Locked {
			fmt.Println("held again")
			return
		}
		if err != nil && status.Code(err) != codes.Unavailable {
			fail("%v", err)
		}
	}
	fail("the server has not come back")
}

func main() {
	flag.Parse()
	encoding.RegisterCodec(codec{})
	switch flag.Arg(0) {
	case "calls":
		one, two := dial(), dial()
		lockAndUnlock(one, two)
		sizes(one, two)
		renewals(one, two)
		ends(one, two)
		crowd(one, two)
		oddities(one)
		fmt.Println("all good")
	case "try":
		try(flag.Arg(1))
	case "keep":
		keep(flag.Arg(1))
	default:
		fail("no such task: %q", flag.Arg(0))
	}
}
