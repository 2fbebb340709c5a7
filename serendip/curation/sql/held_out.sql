-- Items that are kept from training as context items, by a hash that every engine has.
-- Reads items.
SELECT item_id, item_no
FROM items
WHERE SUBSTR(MD5(item_id), 1, 8) >= '{first_hash}' AND SUBSTR(MD5(item_id), 1, 8) < '{end_hash}'
