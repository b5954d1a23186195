"""The command `headway`. `main` dispatches; each sub-command is one module that imports its room only when it runs."""
