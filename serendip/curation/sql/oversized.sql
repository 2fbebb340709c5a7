-- How many pairs of sets are left out, since they have too many pairs to say what followed what.
-- Reads sets.
SELECT COUNT(*) AS sets
FROM sets
WHERE next_moment - moment <= {session_gap_ms}
  AND (events > 1 OR next_events > 1)
  AND size * next_size > {max_tied_pairs}
