-- Items that are kept from training as context items, by a hash that every engine has.
-- Reads items.
SELECT item_id
FROM items
WHERE SUBSTR(MD5(item_id), 1, 8) < '{held_out_below}'
ORDER BY item_id
