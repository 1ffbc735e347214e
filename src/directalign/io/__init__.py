"""Files: the hub, atomic writes, JSONL."""



