-- The label of each held-out item: its best cluster, without the cut per cluster. Reads scores.
SELECT item_id, own_id, node_id, support, satisfaction
FROM scores
WHERE held_out AND rank_in_item = 1
