"""`dfq eval ppl|kl|speed|tasks`."""
