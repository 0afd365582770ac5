-- The chosen o-vector on test: a row of `effects` for each model, task and domain.
SELECT * FROM effects WHERE chosen AND control = 'o-vector'
