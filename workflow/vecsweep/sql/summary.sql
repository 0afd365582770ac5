-- The tables of summary.duckdb. $name stands for an explicit list of Parquet files.
CREATE TABLE models AS
SELECT *, model AS series, NULL::BIGINT AS step  -- see stage summary
FROM read_json($models, columns = {
    model: 'VARCHAR', family: 'VARCHAR', layers: 'BIGINT', d_model: 'BIGINT', vocabulary: 'BIGINT',
    parameters: 'BIGINT', parallel_blocks: 'BOOLEAN', dtype: 'VARCHAR', quantized: 'VARCHAR',
    same_top: 'DOUBLE', divergence: 'DOUBLE', source: 'VARCHAR', revision: 'VARCHAR',
    sha256: 'VARCHAR'
});

CREATE TABLE prompts AS
SELECT p.model, p.task, p.prompt_set, prompt_id, "group", template, out_of_domain, argument,
       answer, demonstrations, text, answer_in_prompt,
       argument_token, answer_tokens, argument_length, answer_length, first_token_letters,
       split, pattern != 'incorrect' AS correct, stratum, dropped
FROM read_parquet($prompts) AS p
LEFT JOIN read_parquet($stages) USING (model, task, prompt_set, prompt_id);

CREATE TABLE tasks AS
SELECT DISTINCT task, title, kind, list_contains($injected, task) AS injected,
       (list_position($tasks, task) - 1)::SMALLINT AS place
FROM read_parquet($prompts);

CREATE TABLE stages AS
SELECT * FROM read_parquet($stages);

CREATE TABLE lens AS
SELECT model, task, prompt_set, prompt_id, layer, site,
       unnest(['argument', 'answer']) AS target,
       unnest([argument_token, answer_token]) AS token_id,
       unnest([argument_rank, answer_rank]) AS rank,
       1 / (1 + rank::FLOAT) AS reciprocal_rank,
       unnest([argument_probability, answer_probability]) AS probability
FROM read_parquet($lens);

CREATE TABLE vocabularies AS
SELECT * FROM read_parquet($vocabularies);

CREATE TABLE top_tokens AS
SELECT model, task, prompt_set, prompt_id, layer, site, position, token_id, token, probability
FROM (
    SELECT model, task, prompt_set, prompt_id, layer, site,
           (generate_subscripts(top_token, 1) - 1)::TINYINT AS position,
           unnest(top_token) AS token_id,
           unnest(top_probability) AS probability
    FROM read_parquet($lens)
) AS t LEFT JOIN vocabularies USING (model, token_id)  -- padded vocabularies have tokens without text
WHERE position < $top_k;

CREATE TABLE ovectors AS
SELECT model, task, donor, layer, rule, flips, norm, cosine_to_mean, argument, answer, promoted,
       demoted
FROM read_parquet($ovectors);

CREATE TABLE interventions AS
SELECT model, task, ovector_task, donor, repeat, source_layer, start_layer, end_layer, mode, position,
       scale, method, domain, split, prompt_id,
       unnest(['argument', 'answer']) AS target,
       unnest([argument_rank_before, answer_rank_before]) AS rank_before,
       unnest([argument_rank_after, answer_rank_after]) AS rank_after,
       top_before, top_after, accepted, alternatives, place_before, place_after, own_lift, others_lift
FROM read_parquet($interventions);

CREATE TABLE heads AS
SELECT * FROM read_parquet($heads);

CREATE TABLE ablations AS
SELECT * FROM read_parquet($ablations);

CREATE TABLE swaps AS
SELECT * FROM read_parquet($swaps);

CREATE TABLE patching AS
SELECT * FROM read_parquet($patching);

CREATE TABLE relational AS
SELECT * FROM read_parquet($relational);

CREATE TABLE attribution AS
SELECT * FROM read_parquet($attribution);

CREATE TABLE tuned AS
SELECT * FROM read_parquet($tuned);

-- What the own answer's reciprocal place among all would be in any order; filled by stage summary.
CREATE TABLE chances (accepted SMALLINT, alternatives SMALLINT, among_chance DOUBLE);

-- A prompt under an intervention, judged. No effect: the top token is still the argument, counted
-- where it was on top in the clean run. Classes of prompts whose answer is not on top: the argument
-- is on top (stays); the first token of another answer is, of the prompt's task or of the vector's
-- (other_answer); anything else is (other). Among: 1 / (1 + place) of the own answer among all answers
-- of the prompt's task.
CREATE VIEW outcomes AS
WITH answers AS (
    SELECT model, task, list_distinct(flatten(list(answer_tokens))) AS tokens
    FROM prompts
    WHERE prompt_set = 'novel' AND answer_tokens IS NOT NULL
    GROUP BY ALL
),
arguments AS (
    SELECT model, task, prompt_id, argument_token FROM prompts WHERE prompt_set = 'novel'
)
SELECT i.* EXCLUDE (target, rank_before, rank_after),
       1 / (1 + rank_before) AS reciprocal_rank_before,
       1 / (1 + rank_after) AS reciprocal_rank_after,
       1 / (1 + place_before) AS among_before,
       1 / (1 + place_after) AS among_after,
       among_chance,
       (top_before = argument_token)::INT AS argument_before,
       (rank_before = 0)::INT AS top_1_before,
       (rank_after = 0)::INT AS top_1,
       (rank_after < 5)::INT AS top_5,
       (rank_after < 10)::INT AS top_10,
       CASE WHEN top_before = argument_token THEN (top_after = top_before)::INT END AS no_effect,
       (rank_after > 0 AND top_after = argument_token)::INT AS argument_stays,
       (rank_after > 0 AND top_after != argument_token
        AND list_contains(tokens || own_tokens, top_after))::INT AS other_answer,
       (rank_after > 0 AND top_after != argument_token
        AND NOT list_contains(tokens || own_tokens, top_after))::INT AS other
FROM interventions AS i
JOIN chances USING (accepted, alternatives)
JOIN arguments USING (model, task, prompt_id)
JOIN answers USING (model, task)
JOIN (SELECT model, task AS ovector_task, tokens AS own_tokens FROM answers)
    USING (model, ovector_task)
WHERE target = 'answer';

-- The setting that was best on dev for each method, and the o-vector's donor.
CREATE TABLE chosen AS
SELECT DISTINCT model, ovector_task AS task, method, if(method = 'o-vector', donor, NULL) AS donor,
       source_layer, start_layer, end_layer, mode, position, scale
FROM interventions
WHERE split = 'test' AND method != 'donor' AND NOT starts_with(method, 'neurons_')
  AND NOT starts_with(method, 'directions_');

-- The paper's own numbers, where they stand in it.
CREATE TABLE paper AS
SELECT quantity, paper_model, task, domain, paper_value::DOUBLE AS paper_value, source,
       coalesce(paper_note, '') AS paper_note
FROM read_csv($paper, header = true, all_varchar = true);

-- The argument formed where its mean reciprocal rank reached this; below, a crossover says nothing.
CREATE MACRO formed_at() AS 0.2;
CREATE MACRO has_formed(reciprocal_rank) AS reciprocal_rank >= formed_at();

-- What stands for a token: its id where it has no text, as the padding of a vocabulary has none.
CREATE MACRO shown(token, token_id) AS coalesce(nullif(token, ''), '⟨' || token_id || '⟩');

-- Yes (1) or no (0) of `is it above the bound`, from the interval of n prompts; null if undecided.
CREATE MACRO yes(n, low, high, bound) AS
    CASE WHEN NOT enough(n) THEN NULL WHEN low > bound THEN 1 WHEN high <= bound THEN 0 END;
CREATE MACRO undecided(n, low, high, bound) AS
    CASE WHEN NOT enough(n) THEN 'too few prompts' WHEN low <= bound AND high > bound
         THEN 'undecided: the interval holds both' ELSE 'decided' END;
