-- Crossovers of correctly answered prompts, with the argument's highest mean reciprocal rank before
-- (`formed`) and its band: of two curves near zero one always leads, and an argument may also rise
-- after the answer. Fewer right answers than `too_few` are left out.
SELECT c.model, c.task, c.prompt_set, c.prompts, c.depth, c.low, c.high, c.uncrossed, parameters,
       max(reciprocal_rank) FILTER (v.depth < c.depth) AS formed,
       arg_max(v.low, reciprocal_rank) FILTER (v.depth < c.depth) AS formed_low,
       arg_max(v.high, reciprocal_rank) FILTER (v.depth < c.depth) AS formed_high
FROM crossovers AS c
JOIN curves AS v USING (model, task, prompt_set, subset)
JOIN models USING (model)
WHERE subset = 'correct' AND target = 'argument' AND NOT too_few(c.prompts)
GROUP BY ALL
