-- Crossovers of correctly answered prompts, with the argument's highest mean reciprocal rank before
-- (`formed`): of two curves near zero one always leads, and an argument may also rise after the answer.
SELECT c.model, c.task, c.prompt_set, c.prompts, c.depth, c.low, c.high, parameters,
       max(reciprocal_rank) FILTER (v.depth < c.depth) AS formed
FROM crossovers AS c
JOIN curves AS v USING (model, task, prompt_set, subset)
JOIN models USING (model)
WHERE subset = 'correct' AND target = 'argument'
GROUP BY ALL
