"Public classes of the core that are not called with arguments."

CALLS = {}
LEFT_OUT = {
    "core.ModuleWithSettings": "takes no argument",
    "core.runs_root": "takes no argument",
}
