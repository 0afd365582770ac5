-- Table `runs`: the notes that every result file carries, one row a file. `$start` is where the
-- path within the results folder begins: stage/model/task...
CREATE TABLE runs AS
WITH notes AS (
    SELECT file_name, map_from_entries(list((decode(key), decode(value)))) AS note
    FROM parquet_kv_metadata($paths)
    WHERE decode(key) != 'ARROW:schema'
    GROUP BY file_name
),
named AS (
    SELECT split(replace(substr(file_name, $start), '.parquet', ''), '/') AS path, note FROM notes
)
SELECT path[1] AS stage, path[2] AS model, if(path[1] = 'tuned', NULL, path[3]) AS task,
       if(path[1] = 'tuned', path[3], path[4]) AS layers,
       note['step_version']::INT AS step_version,
       note['vecsweep'] AS vecsweep, note['git_commit'] AS git_commit, note['python'] AS python,
       note['packages'] AS packages,
       coalesce(note['states_host'], note['host']) AS host,
       models.dtype,
       coalesce(note['states_shards'], note['shards'], '1')::INT AS shards,
       coalesce(note['states_engine'], note['engine']) AS engine,
       coalesce(note['states_batch_tokens'], note['batch_tokens'])::INT AS batch_tokens,
       coalesce(note['states_offload'], note['offload'])::BOOLEAN AS offload,
       coalesce(note['states_proof_stream'], note['proof_stream'])::DOUBLE AS proof_stream,
       coalesce(note['states_proof_readout'], note['proof_readout'])::DOUBLE AS proof_readout,
       models.revision, models.sha256,
       note['states_token_ids_sha256'] AS token_ids_sha256
FROM named LEFT JOIN models ON models.model = path[2]
ORDER BY ALL
