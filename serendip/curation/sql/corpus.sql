-- The fewest most-impressed items that cover a share of the impressions, in thousandths.
-- Reads traffic (item_id, impressions).
SELECT item_id, impressions
FROM (
  SELECT
    item_id,
    impressions,
    SUM(impressions) OVER (
      ORDER BY impressions DESC, item_id ROWS UNBOUNDED PRECEDING
    ) AS covered,
    SUM(impressions) OVER () AS total
  FROM traffic
)
WHERE (covered - impressions) * 1000 < {coverage_thousandths} * total
