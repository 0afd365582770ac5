-- Table effects with the p of each difference to the o-vector adjusted (Holm) for all that was compared
-- in a model and domain: methods and tasks, but not the o-vector itself, nor all its parts together.
WITH compared AS (
    SELECT model, ovector_task, task, domain, method, p,
           row_number() OVER smallest AS place,
           count(*) OVER (PARTITION BY model, domain) AS tests
    FROM effects
    WHERE method NOT IN ('o-vector', 'neurons_all', 'directions_all') AND p IS NOT NULL
    WINDOW smallest AS (PARTITION BY model, domain ORDER BY p, ovector_task, task, method)
),
adjusted AS (
    SELECT model, ovector_task, task, domain, method,
           max(least(1, p * (tests - place + 1))) OVER (
               PARTITION BY model, domain ORDER BY place ROWS UNBOUNDED PRECEDING
           ) AS p_holm
    FROM compared
)
SELECT e.*, p_holm
FROM effects AS e LEFT JOIN adjusted USING (model, ovector_task, task, domain, method)
