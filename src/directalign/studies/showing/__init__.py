"""How every study is printed and drawn: one style of tables, one style of figures, one way to leave a folder."""



