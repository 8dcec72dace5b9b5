"""The stages of the main job, in order; each reads the folders of the stages before it and writes its own."""
