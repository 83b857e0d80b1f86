"""Model families: one module each, found through `deployments.pipelines.registry`.

Importing these modules is light; torch and diffusers are imported inside the functions that need them.
"""
