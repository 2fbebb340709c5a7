-- Each interaction n and the user's last, v, summed up by what the two make. "kind" is 0: no pair
-- (a session's beginning, the same item again, or a set of equal timestamps, in which no one is
-- last); or a pair whose clusters are 1: similar, 2: serendipitous, 3: other. Of serendipitous
-- pairs, one row for each (v, C(n)): item_no, node_id; of the others, one row a kind.
-- Interactions in a set of equal timestamps, or next to one, stand by themselves: "moment" is not
-- null for them alone, and "times" counts those that are the same in all columns. A user's first
-- or last may stand so for the sake of a neighbour's set: that changes no sum.
-- The window is ordered by time alone: what it says of interactions that tie is not used.
-- Summed by three numbers that are never null, and taken apart after that.
--   pair: item_no * 2^32 + node_id of a serendipitous pair; 2^31 + kind of what is none.
--   tied: bucket * 2^51 + satisfaction in millionths * 2^31 + item_no of n itself.
-- Reads events.
SELECT
  CASE WHEN made < 2147483648 THEN 2 ELSE CAST(made - 2147483648 AS INT) END AS kind,
  CASE WHEN made < 2147483648 THEN CAST(pair >> 32 AS INT) END AS item_no,
  CASE WHEN made < 2147483648 THEN CAST(made AS INT) END AS node_id,
  times,
  satisfaction_q,
  CASE WHEN moment >= 0 THEN CAST(tied >> 51 AS INT) END AS bucket,
  CASE WHEN moment >= 0 THEN moment END AS moment,
  CASE WHEN moment >= 0 THEN CAST(tied & 2147483647 AS INT) END AS own_item_no,
  CASE WHEN moment >= 0 THEN CAST((tied >> 31) & 1048575 AS INT) END AS own_satisfaction_q
FROM (
  SELECT
    pair,
    pair & 4294967295 AS made,
    moment,
    tied,
    COUNT(*) AS times,
    CAST(SUM(satisfaction_q) AS BIGINT) AS satisfaction_q
  FROM (
    SELECT
      CASE
        WHEN kind = 2
          THEN (last_place & {item_mask}) * 4294967296 + ((place >> {item_bits}) & {node_mask})
        ELSE 2147483648 + kind
      END AS pair,
      CASE WHEN by_a_tie THEN moment ELSE -1 END AS moment,
      CASE
        WHEN by_a_tie THEN bucket * 2251799813685248
          + satisfaction_q * CAST(2147483648 AS BIGINT) + (place & {item_mask})
        ELSE -1
      END AS tied,
      satisfaction_q
    FROM (
      SELECT
        bucket,
        moment,
        place,
        satisfaction_q,
        last_place,
        COALESCE(
          moment = last_moment OR moment = next_moment
            OR last_moment = moment_before_last OR next_moment = moment_after_next,
          FALSE
        ) AS by_a_tie,
        CASE
          WHEN last_moment IS NULL OR moment - last_moment > {session_gap_ms}
            OR place = last_place
            THEN 0
          WHEN moment = last_moment OR moment = next_moment OR last_moment = moment_before_last
            THEN 0
          WHEN (place >> {base_shift}) <> (last_place >> {base_shift}) THEN 3
          WHEN (place >> {item_bits}) = (last_place >> {item_bits}) THEN 1
          ELSE 2
        END AS kind
      FROM (
        SELECT
          bucket,
          moment,
          place,
          satisfaction_q,
          LAG(moment, 2) OVER by_time AS moment_before_last,
          LAG(moment) OVER by_time AS last_moment,
          LEAD(moment) OVER by_time AS next_moment,
          LEAD(moment, 2) OVER by_time AS moment_after_next,
          LAG(place) OVER by_time AS last_place
        FROM events
        WHERE place IS NOT NULL
        WINDOW by_time AS (PARTITION BY bucket ORDER BY moment)
      )
    )
  )
  GROUP BY pair, moment, tied
)
