-- Crossovers of correctly answered prompts, with the argument's highest mean reciprocal rank before
-- (`formed`) and its interval: of two curves near zero one always leads, and an argument may also rise
-- after the answer. Fewer right answers than `too_few` are left out.
SELECT c.model, c.task, c.prompt_set, c.prompts, c.depth, c.low, c.high, c.uncrossed, parameters,
       c.formed, c.formed_low, c.formed_high
FROM crossovers AS c
JOIN models USING (model)
WHERE subset = 'correct' AND NOT too_few(c.prompts)
