-- The models but for all revisions of a series before its last.
SELECT *, count(*) OVER (PARTITION BY series) AS revisions
FROM models
QUALIFY row_number() OVER (PARTITION BY series ORDER BY step DESC NULLS FIRST, model) = 1
