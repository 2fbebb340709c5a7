-- Each interaction and the user's next, summed up by what the two make. "kind" is 0: no pair (a
-- session's end, the same item again, or a set of equal timestamps, in which no one is next); or a
-- pair whose clusters are 1: similar, 2: serendipitous, 3: other. Of serendipitous pairs, one row
-- for each (v, C(n)); of the others, one row a kind.
-- Interactions in a set of equal timestamps, or next to one, stand by themselves: "moment" is not
-- null for them alone, and "times" counts those that are the same in all columns. A user's last
-- may stand so for the sake of the set that begins the next user: that changes no sum.
-- The window is ordered by time alone: what it says of interactions that tie is not used.
-- Summed by three numbers that are never null, and taken apart after that.
--   pair: item_no * 2^32 + next_node_id, of serendipitous pairs; 2^31 + kind stands for
--     next_node_id in others, and 0 for item_no where the item does not matter.
--   tied_q: bucket * 2^20 + satisfaction in millionths.
-- Reads events.
SELECT
  CASE WHEN made < 2147483648 THEN 2 ELSE CAST(made - 2147483648 AS INT) END AS kind,
  CASE WHEN moment >= 0 THEN CAST(tied_q >> 20 AS INT) END AS bucket,
  CASE WHEN moment >= 0 THEN moment END AS moment,
  CASE WHEN moment >= 0 THEN CAST(tied_q & 1048575 AS INT) END AS satisfaction_q,
  CASE WHEN moment >= 0 OR made < 2147483648 THEN CAST(pair >> 32 AS INT) END AS item_no,
  CASE WHEN made < 2147483648 THEN CAST(made AS INT) END AS next_node_id,
  times,
  next_satisfaction_q
FROM (
  SELECT
    pair,
    pair & 4294967295 AS made,
    moment,
    tied_q,
    COUNT(*) AS times,
    CAST(SUM(next_satisfaction_q) AS BIGINT) AS next_satisfaction_q
  FROM (
    SELECT
      CASE WHEN by_a_tie OR kind = 2 THEN (place & 4294967295) * 4294967296 ELSE 0 END
        + CASE WHEN kind = 2 THEN next_place >> 32 ELSE 2147483648 + kind END AS pair,
      CASE WHEN by_a_tie THEN moment ELSE -1 END AS moment,
      CASE WHEN by_a_tie THEN bucket * CAST(1048576 AS BIGINT) + (base_q & 1048575) ELSE -1 END
        AS tied_q,
      next_base_q & 1048575 AS next_satisfaction_q
    FROM (
      SELECT
        bucket,
        moment,
        place,
        base_q,
        next_place,
        next_base_q,
        COALESCE(
          moment = next_moment OR moment = last_moment
            OR next_moment = moment_after_next OR last_moment = moment_before_last,
          FALSE
        ) AS by_a_tie,
        CASE
          WHEN moment = next_moment OR moment = last_moment OR next_moment = moment_after_next
            THEN 0
          WHEN next_moment IS NULL OR next_moment - moment > {session_gap_ms}
            OR place = next_place
            THEN 0
          WHEN (place >> 32) = (next_place >> 32) THEN 1
          WHEN (base_q >> 20) = (next_base_q >> 20) THEN 2
          ELSE 3
        END AS kind
      FROM (
        SELECT
          bucket,
          moment,
          place,
          base_q,
          LAG(moment, 2) OVER by_time AS moment_before_last,
          LAG(moment) OVER by_time AS last_moment,
          LEAD(moment) OVER by_time AS next_moment,
          LEAD(moment, 2) OVER by_time AS moment_after_next,
          LEAD(place) OVER by_time AS next_place,
          LEAD(base_q) OVER by_time AS next_base_q
        FROM events
        WHERE place IS NOT NULL
        WINDOW by_time AS (PARTITION BY bucket ORDER BY moment)
      )
    )
  )
  GROUP BY pair, moment, tied_q
)
