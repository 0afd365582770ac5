-- Each linear map at its own best setting on dev, on test: is it faithful, is it causal.
WITH counted AS (
    SELECT model, task, split, measure, method, layer, beta, "rank", count(*) AS prompts,
           avg(success::INT) AS share, avg(chance) AS chance
    FROM relational
    GROUP BY ALL
),
searched AS (
    SELECT model, task, measure, method, count(*) AS settings
    FROM counted WHERE split = 'dev' GROUP BY ALL
)
SELECT t.model, t.task, t.measure, t.method, t.layer, t.beta, t."rank", settings,
       d.prompts AS dev_prompts, d.share AS dev_share, t.prompts, t.share,
       wilson_low(t.share, t.prompts) AS low, wilson_high(t.share, t.prompts) AS high, t.chance,
       too_few(t.prompts) AS too_few
FROM counted AS t
JOIN counted AS d ON d.split = 'dev' AND (d.model, d.task, d.measure, d.method, d.layer)
    = (t.model, t.task, t.measure, t.method, t.layer)
    AND d.beta IS NOT DISTINCT FROM t.beta AND d."rank" IS NOT DISTINCT FROM t."rank"
JOIN searched AS s ON (s.model, s.task, s.measure, s.method) = (t.model, t.task, t.measure, t.method)
WHERE t.split = 'test'
ORDER BY ALL
