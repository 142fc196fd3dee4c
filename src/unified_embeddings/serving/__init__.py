"""The embedder over HTTP and as a job: contracts, the service, the light endpoint, RunPod."""
