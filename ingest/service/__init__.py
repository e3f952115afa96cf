"""The service: jobs are submitted, workers run them, a scheduler heals what was lost.

Nothing here imports torch before a worker's child has claimed a job: a process that has touched
CUDA cannot fork, and the processes around a job need none of it.
"""
