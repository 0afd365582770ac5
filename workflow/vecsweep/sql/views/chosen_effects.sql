-- The o-vector on test: a row of `effects` for each model, task and domain.
SELECT * FROM effects WHERE method = 'o-vector'
