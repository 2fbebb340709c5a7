// Asks for items that a user does not expect: in one call, then tier by tier.
//
//	go run . CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]
//
// PLANNER (127.0.0.1:50051), RETRIEVER (127.0.0.1:50052) and TOKEN (none) are of the environment.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "recommend/gen/serendip/v1"
)

const (
	deadline = 2 * time.Second
	wanted   = 10
	// A server that is away is tried again, for about 0.3 s; nothing else is.
	serviceConfig = `{"methodConfig": [{"name": [{}], "retryPolicy": {
		"maxAttempts": 3, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]}}]}`
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", status.Code(err), status.Convert(err).Message())
		os.Exit(1)
	}
}

func run(contextItem string, watched []string) error {
	planner, err := connect(env("PLANNER", "127.0.0.1:50051"))
	if err != nil {
		return err
	}
	defer planner.Close()
	retriever, err := connect(env("RETRIEVER", "127.0.0.1:50052"))
	if err != nil {
		return err
	}
	defer retriever.Close()

	var history []*pb.HistoryItem
	for _, item := range watched {
		history = append(history, &pb.HistoryItem{ItemId: item})
	}
	one, err := oneCall(planner, history, contextItem)
	if err != nil {
		return err
	}
	show("in one call", one.GetPlan(), one.GetSource(), one.GetCandidates())

	row, found, err := twoCalls(planner, retriever, history, contextItem)
	if err != nil {
		return err
	}
	show("tier by tier", row.GetPlan(), row.GetSource(), found.GetCandidates())
	return nil
}

// The planner server asks the retriever itself.
func oneCall(planner *grpc.ClientConn, history []*pb.HistoryItem, contextItem string) (*pb.RecommendResponse, error) {
	ctx, cancel := within(deadline)
	defer cancel()
	return pb.NewRecommenderClient(planner).Recommend(ctx, &pb.RecommendRequest{
		History:       history,
		ContextItemId: contextItem,
		K:             wanted,
		Constraint:    pb.Constraint_CONSTRAINT_NOT_OWN,
	})
}

// The same, tier by tier: plan, then retrieve from the plan's first cluster, under one deadline.
func twoCalls(planner, retriever *grpc.ClientConn, history []*pb.HistoryItem, contextItem string) (*pb.PlanRow, *pb.RetrieveResponse, error) {
	ctx, cancel := within(deadline)
	defer cancel()
	planned, err := pb.NewPlannerClient(planner).Plan(ctx, &pb.PlanRequest{
		ContextItemIds: []string{contextItem},
		K:              8,
	})
	if err != nil {
		return nil, nil, err
	}
	row := planned.GetRows()[0] // one an item, each with a status of its own
	if code := row.GetStatus().GetCode(); code != 0 {
		return nil, nil, status.Error(codes.Code(code), row.GetStatus().GetMessage())
	}
	plan := row.GetPlan()
	var nodes []int32
	for _, cluster := range plan.GetClusters() {
		nodes = append(nodes, cluster.GetNodeId())
	}
	var exclude []int32 // the user's own cluster is never widened to; an item outside the tree has none
	if plan.OwnNodeId != nil {
		exclude = []int32{plan.GetOwnNodeId()}
	}
	found, err := pb.NewRetrieverClient(retriever).Retrieve(ctx, &pb.RetrieveRequest{
		History:        history,
		NodeIds:        nodes[:1],
		WidenNodeIds:   nodes[1:],
		ExcludeNodeIds: exclude,
		TreeVersion:    plan.GetTreeVersion(), // node IDs mean nothing without it
		K:              wanted,
	})
	return row, found, err
}

func connect(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

func within(timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx := context.Background()
	if token := os.Getenv("TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return context.WithTimeout(ctx, timeout)
}

func show(title string, plan *pb.Plan, source pb.PlanSource, candidates []*pb.Candidate) {
	fmt.Printf("%s: %s (%s)\n", title, plan.GetClusters()[0].GetDescription(), source)
	for _, c := range candidates {
		widened := ""
		if c.GetWidened() {
			widened = "  widened"
		}
		fmt.Printf("  %s  %.3f%s\n", c.GetItemId(), c.GetScore(), widened)
	}
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
