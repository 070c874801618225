// Before anything is painted: the theme that was chosen here. Not a module, so that it is not deferred.
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
