"""stub"""
import pyarrow as pa

from vecsweep.files import read_table, write_table

t,n,s,f=pa.string(),pa.int32(),pa.int16(),pa.float32()
SCHEMAS={
"vocabulary":{"model":t,"token_id":n,"token":t},
"prompts":{"model":t,"task":t,"title":t,"kind":t,"prompt_set":t,"prompt_id":n,"group":t,"out_of_domain":pa.bool_(),"argument":t,"answer":t,"demonstrations":t,"text":t,"token_ids":pa.list_(n),"argument_token":n,"answer_tokens":pa.list_(n),"argument_length":n,"answer_length":n,"first_token_letters":n,"stratum":t,"split":t,"dropped":t},
"lens":{"model":t,"task":t,"prompt_set":t,"prompt_id":n,"layer":s,"site":t,"top_token":pa.list_(n),"top_probability":pa.list_(f),"argument_token":n,"argument_rank":n,"argument_probability":f,"answer_token":n,"answer_rank":n,"answer_probability":f},
"ovectors":{"model":t,"task":t,"donor":n,"layer":s,"argument":t,"answer":t,"norm":f,"cosine_to_mean":f,"promoted":pa.list_(n),"demoted":pa.list_(n)},
"interventions":{"model":t,"task":t,"ovector_task":t,"donor":n,"repeat":s,"source_layer":s,"start_layer":s,"end_layer":s,"mode":t,"position":t,"scale":f,"control":t,"chosen":pa.bool_(),"domain":t,"split":t,"prompt_id":n,"argument_rank_before":n,"argument_rank_after":n,"answer_rank_before":n,"answer_rank_after":n,"top_before":n,"top_after":n},
"ablations":{"model":t,"task":t,"prompt_set":t,"sublayer":t,"value":t,"order":t,"step":s,"removed_layers":s,"fraction":f,"prompt_id":n,"rank":n,"correct":pa.bool_()},
}
def schema(name): return pa.schema(SCHEMAS[name])
def write(name, rows, path, notes=None):
    if isinstance(rows,list): rows=pa.Table.from_pylist([{k:r[k] for k in SCHEMAS[name]} for r in rows],schema=schema(name))
    write_table(rows,path,notes)
def read(name,path,columns=None): return read_table(path,columns=columns)
