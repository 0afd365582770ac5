-- The tables of summary.duckdb. $name stands for an explicit list of Parquet files.
CREATE TABLE models AS
SELECT model, family, layers, d_model, vocabulary, parameters, parallel_blocks, dtype, source,
       revision, sha256
FROM read_json($models);

CREATE TABLE prompts AS
SELECT p.model, p.task, p.prompt_set, prompt_id, "group", argument, answer, demonstrations, text,
       argument_token, answer_tokens, argument_length, answer_length, first_token_letters,
       split, pattern != 'incorrect' AS correct, stratum, dropped
FROM read_parquet($prompts) AS p
LEFT JOIN read_parquet($stages) USING (model, task, prompt_set, prompt_id);

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
) JOIN vocabularies USING (model, token_id);

CREATE TABLE ovectors AS
SELECT model, task, donor, layer, argument, answer, norm, cosine_to_mean,
       list_transform(promoted, lambda t: t) AS promoted, demoted
FROM read_parquet($ovectors);

CREATE TABLE interventions AS
SELECT i.model, i.task, ovector_task, donor, source_layer, start_layer, end_layer, mode, position,
       scale, control, domain, i.split, prompt_id,
       unnest(['argument', 'answer']) AS target,
       unnest([argument_rank_before, answer_rank_before]) AS rank_before,
       unnest([argument_rank_after, answer_rank_after]) AS rank_after,
       top_before, top_after
FROM read_parquet($interventions) AS i;

CREATE TABLE ablations AS
SELECT * FROM read_parquet($ablations);
