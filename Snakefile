# The workflow is in workflow/Snakefile, where `module` and the workflow catalog look for it.
include: "workflow/Snakefile"
