"""The Python client: plans, candidates and recommendations from the two servers.

    from serendip_client import SerendipClient

    with SerendipClient("localhost:7001") as client:
        for candidate in client.recommend(["item-3", "item-9"], "item-9", k=10).candidates:
            print(candidate.item_id, candidate.score)

Needs gRPC and protobuf alone; knows no artefact and no model.
"""

from serendip.core import (
    AttributeType,
    Candidate,
    Constraint,
    DeadlineSpent,
    Filter,
    InvalidRequest,
    Merge,
    NotFound,
    NotReady,
    Overloaded,
    Plan,
    PlannedCluster,
    PlanSource,
    RetrievalQuery,
    SerendipError,
    Unauthenticated,
    Versions,
    WrongTree,
)
from serendip_client.client import AsyncSerendipClient, SerendipClient
from serendip_client.types import (
    Cluster,
    History,
    HistoryItem,
    PlannerInfo,
    PlannerLimits,
    PlanRow,
    Recommendation,
    RecommendationRow,
    RecommendQuery,
    Resolution,
    Retrieved,
    RetrievedRow,
    RetrieverInfo,
)

__all__ = [
    "AsyncSerendipClient",
    "AttributeType",
    "Candidate",
    "Cluster",
    "Constraint",
    "DeadlineSpent",
    "Filter",
    "History",
    "HistoryItem",
    "InvalidRequest",
    "Merge",
    "NotFound",
    "NotReady",
    "Overloaded",
    "Plan",
    "PlanRow",
    "PlanSource",
    "PlannedCluster",
    "PlannerInfo",
    "PlannerLimits",
    "RecommendQuery",
    "Recommendation",
    "RecommendationRow",
    "Resolution",
    "RetrievalQuery",
    "Retrieved",
    "RetrievedRow",
    "RetrieverInfo",
    "SerendipClient",
    "SerendipError",
    "Unauthenticated",
    "Versions",
    "WrongTree",
]
