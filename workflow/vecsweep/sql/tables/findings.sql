-- The first answers for each model and task, a row each, and what they are judged by. X: the answer
-- overtakes for good an argument that had formed, in abstractive prompts answered correctly. Best: of all
-- methods that were searched, the largest mean reciprocal rank on dev, so that test says what it is worth.
-- The paper's ranks as reciprocal ranks.
WITH on_dev AS (
    SELECT model, ovector_task, method, max(reciprocal_rank_after) AS dev_after
    FROM (
        SELECT model, ovector_task, method, avg(reciprocal_rank_after) AS reciprocal_rank_after
        FROM outcomes
        WHERE split = 'dev'
        GROUP BY model, ovector_task, method, source_layer, start_layer, end_layer, mode, scale
    )
    GROUP BY ALL
),
best AS (
    SELECT *, ovector_task AS vectors_of
    FROM corrected_effects JOIN on_dev USING (model, ovector_task, method)
    WHERE domain = 'in'
    QUALIFY row_number() OVER (PARTITION BY model, ovector_task ORDER BY dev_after DESC, method) = 1
),
published AS (
    SELECT if(task = 'capitals' AND EXISTS (FROM tasks WHERE task = 'capitals_paper'),
              'capitals_paper', task) AS task,
           any_value(paper_value) FILTER (quantity = 'X, abstractive prompts') AS paper_x,
           any_value(paper_value) FILTER (quantity = 'depth of the crossover') AS paper_depth,
           1 / any_value(paper_value) FILTER (quantity = 'rank before') AS paper_before,
           1 / any_value(paper_value) FILTER (quantity = 'rank after') AS paper_after
    FROM paper
    WHERE domain = 'in'
    GROUP BY ALL
)
SELECT g.model, g.task,
       coalesce(round(n.correct * n.prompts), 0)::BIGINT AS correct_prompts, coalesce(n.prompts, 0) AS prompts,
       n.argument_function,
       CASE WHEN too_few(correct_prompts) THEN 'too few'
            WHEN NOT enough(correct_prompts) THEN 'few'
            ELSE CASE yes(correct_prompts, coalesce(formed_low, 0), coalesce(formed_high, 0), formed_at())
                 WHEN 1 THEN 'yes' WHEN 0 THEN 'no' ELSE 'undecided' END END AS x,
       c.depth, c.low AS depth_low, c.high AS depth_high, c.formed, c.formed_low, c.formed_high,
       paper_x, paper_depth,
       CASE WHEN NOT g.injected THEN 'not injected'
            WHEN b.method IS NULL THEN 'no vector'
            WHEN too_few(b.prompts) THEN 'too few'
            WHEN NOT enough(b.prompts) THEN 'few'
            WHEN b.rise_low > 0 THEN 'yes'
            WHEN b.rise_high <= 0 THEN 'no' ELSE 'undecided' END AS lift,
       b.method AS best, b.prompts AS test_prompts,
       b.reciprocal_rank_before, b.reciprocal_rank_after, b.reciprocal_rank_after_low,
       b.reciprocal_rank_after_high, b.rise, b.rise_low, b.rise_high,
       o.reciprocal_rank_after AS ovector_after,
       b.difference, b.difference_low, b.difference_high, b.p_holm,
       b.among_before, b.among_after, b.among_after_low, b.among_after_high, b.among_chance, b.transfer,
       paper_before, paper_after
FROM (SELECT model, task, injected FROM models CROSS JOIN tasks) AS g
LEFT JOIN (FROM patterns WHERE prompt_set = 'abstractive' AND subset = 'all') AS n USING (model, task)
LEFT JOIN (FROM crossings WHERE prompt_set = 'abstractive') AS c USING (model, task)
LEFT JOIN best AS b ON (b.model, b.vectors_of) = (g.model, g.task)
LEFT JOIN (FROM chosen_effects WHERE domain = 'in') AS o
    ON (o.model, o.ovector_task) = (g.model, g.task)
LEFT JOIN published AS p ON p.task = g.task
ORDER BY ALL
