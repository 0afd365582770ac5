# The workflow is in workflow/Snakefile, where `module` and the workflow catalog look for it.
include: "workflow/Snakefile"


workflow.default_target = "all"  # an included file's own is not taken
