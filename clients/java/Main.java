import dev.serendip.v1.Candidate;
import dev.serendip.v1.Constraint;
import dev.serendip.v1.HistoryItem;
import dev.serendip.v1.Plan;
import dev.serendip.v1.PlanRequest;
import dev.serendip.v1.PlanRow;
import dev.serendip.v1.PlanSource;
import dev.serendip.v1.PlannedCluster;
import dev.serendip.v1.PlannerGrpc;
import dev.serendip.v1.RecommendRequest;
import dev.serendip.v1.RecommendResponse;
import dev.serendip.v1.RecommenderGrpc;
import dev.serendip.v1.RetrieveRequest;
import dev.serendip.v1.RetrieveResponse;
import dev.serendip.v1.RetrieverGrpc;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * Asks for items that a user does not expect: in one call, then tier by tier.
 *
 * <p>java Main CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]; PLANNER (127.0.0.1:50051), RETRIEVER
 * (127.0.0.1:50052) and TOKEN (none) are of the environment.
 */
public final class Main {
  private static final int WANTED = 10;
  private static final long DEADLINE_MS = 2000;

  /** A server that is away is tried again, for about 0.3 s; nothing else is. */
  private static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name", List.of(Map.of()),
                  "retryPolicy",
                      Map.of(
                          "maxAttempts", 3.0,
                          "initialBackoff", "0.1s",
                          "maxBackoff", "1s",
                          "backoffMultiplier", 2.0,
                          "retryableStatusCodes", List.of("UNAVAILABLE")))));

  public static void main(String[] args) {
    if (args.length == 0) {
      System.err.println("usage: java Main CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]");
      System.exit(2);
    }
    List<HistoryItem> history = new ArrayList<>();
    for (String item : Arrays.asList(args).subList(1, args.length)) {
      history.add(HistoryItem.newBuilder().setItemId(item).build());
    }
    ManagedChannel planner = connect(env("PLANNER", "127.0.0.1:50051"));
    ManagedChannel retriever = connect(env("RETRIEVER", "127.0.0.1:50052"));
    int code = 0;
    try {
      oneCall(withToken(planner), history, args[0]);
      twoCalls(withToken(planner), withToken(retriever), history, args[0]);
    } catch (StatusRuntimeException e) {
      System.err.println(e.getStatus().getCode() + ": " + e.getStatus().getDescription());
      code = 1;
    } finally {
      planner.shutdownNow();
      retriever.shutdownNow();
    }
    System.exit(code);
  }

  /** The planner server asks the retriever itself. */
  private static void oneCall(Channel planner, List<HistoryItem> history, String contextItem) {
    RecommendResponse answer =
        RecommenderGrpc.newBlockingStub(planner)
            .withDeadlineAfter(DEADLINE_MS, TimeUnit.MILLISECONDS)
            .recommend(
                RecommendRequest.newBuilder()
                    .addAllHistory(history)
                    .setContextItemId(contextItem)
                    .setK(WANTED)
                    .setConstraint(Constraint.CONSTRAINT_NOT_OWN)
                    .build());
    show("in one call", answer.getPlan(), answer.getSource(), answer.getCandidatesList());
  }

  /** The same, tier by tier: plan, then retrieve from its first cluster, under one deadline. */
  private static void twoCalls(
      Channel planner, Channel retriever, List<HistoryItem> history, String contextItem) {
    Deadline deadline = Deadline.after(DEADLINE_MS, TimeUnit.MILLISECONDS);
    PlanRow row =
        PlannerGrpc.newBlockingStub(planner)
            .withDeadline(deadline)
            .plan(PlanRequest.newBuilder().addContextItemIds(contextItem).setK(8).build())
            .getRows(0); // one an item, each with a status of its own
    if (row.getStatus().getCode() != 0) {
      throw Status.fromCodeValue(row.getStatus().getCode())
          .withDescription(row.getStatus().getMessage())
          .asRuntimeException();
    }
    Plan plan = row.getPlan();
    RetrieveRequest.Builder request =
        RetrieveRequest.newBuilder()
            .addAllHistory(history)
            .setTreeVersion(plan.getTreeVersion()) // node IDs mean nothing without it
            .setK(WANTED);
    List<PlannedCluster> clusters = plan.getClustersList();
    request.addNodeIds(clusters.get(0).getNodeId());
    for (PlannedCluster next : clusters.subList(1, clusters.size())) {
      request.addWidenNodeIds(next.getNodeId());
    }
    if (plan.hasOwnNodeId()) { // never widened to; an item outside the tree has none
      request.addExcludeNodeIds(plan.getOwnNodeId());
    }
    RetrieveResponse answer =
        RetrieverGrpc.newBlockingStub(retriever).withDeadline(deadline).retrieve(request.build());
    show("tier by tier", plan, row.getSource(), answer.getCandidatesList());
  }

  private static void show(
      String title, Plan plan, PlanSource source, List<Candidate> candidates) {
    System.out.printf("%s: %s (%s)%n", title, plan.getClusters(0).getDescription(), source);
    for (Candidate c : candidates) {
      System.out.printf(
          "  %s  %.3f%s%n", c.getItemId(), c.getScore(), c.getWidened() ? "  widened" : "");
    }
  }

  private static ManagedChannel connect(String address) {
    return ManagedChannelBuilder.forTarget(address)
        .usePlaintext()
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry()
        .maxInboundMessageSize(64 << 20)
        .build();
  }

  private static Channel withToken(Channel channel) {
    String token = System.getenv("TOKEN");
    if (token == null) {
      return channel;
    }
    Metadata metadata = new Metadata();
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return ClientInterceptors.intercept(
        channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  private static String env(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null ? otherwise : value;
  }
}
