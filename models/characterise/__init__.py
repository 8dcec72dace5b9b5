"""Which of the five workload classes a job is of, by what it did: utilisation, memory, watts and its shape."""
